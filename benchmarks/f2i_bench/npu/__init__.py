"""What a model would cost on the NPU of a phone: estimates by the compiler of that NPU, and other networks beside ours."""
