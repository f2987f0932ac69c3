"""Text for people: units, tables and progress lines."""
