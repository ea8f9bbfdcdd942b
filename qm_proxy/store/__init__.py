"""Records → SQLite, and every question asked of it."""
