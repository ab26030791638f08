"""Programs that measure the server as `docs/benchmarks.md` says; none of them is a test."""
