"""Reading files and archives within bounds."""
