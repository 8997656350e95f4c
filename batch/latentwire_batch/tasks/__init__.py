"""The input: records from files, the rows that they become, and the results of rows."""
