"""What other memory estimators say about the published rows; import with ``benchmarks`` on the path."""
