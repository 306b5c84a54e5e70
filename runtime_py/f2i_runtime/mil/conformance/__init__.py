"""coremltools' own operation tests, run against this evaluator."""
