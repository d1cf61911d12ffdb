"""What stands above the papers: whole runs, their records and pictures."""
