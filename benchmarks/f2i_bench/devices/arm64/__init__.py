"""ARM64 under emulation."""
