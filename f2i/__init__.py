"""F2I mobile: take F2IDiff super-resolution models to phones, and prove what arrives there."""
