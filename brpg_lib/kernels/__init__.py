"""Numerical building blocks. They know tensors only: no classes, phases or configuration."""
