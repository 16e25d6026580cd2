"""Rendering: what the library found, as tables for people. The library itself never prints."""
