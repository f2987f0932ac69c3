"""Text for people: units, tables, progress lines."""
