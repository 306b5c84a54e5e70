"""Measure bundles: host, Android, Apple, ARM64 emulation; reports."""
