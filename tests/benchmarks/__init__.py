"""Every figure that we promise, measured side by side with its peer; run ``python -m tests.benchmarks``."""
