"""Core ML on a Mac, and a Swift package for iPhones."""
