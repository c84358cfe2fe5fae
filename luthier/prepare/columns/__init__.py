"""From a table's columns to a task's own fields: which column is what, and what stands in a cell."""
