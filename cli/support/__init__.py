"""What several commands share: the sets they are given, job files, progress and summaries."""
