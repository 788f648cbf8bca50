"""Published measurements and the environments they are traced in; import with ``benchmarks`` on the path."""
