"""Measuring on other devices: one job format, one runner, one folder per kind of device."""
