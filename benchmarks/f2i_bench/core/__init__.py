"""What every benchmark shares: records, verdicts, sensors."""
