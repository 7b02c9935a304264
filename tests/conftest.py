"""Its place makes ``tests`` importable: ``models``, ``layers`` and other helpers that several test files share."""
