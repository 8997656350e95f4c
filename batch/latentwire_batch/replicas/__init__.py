"""The services that compute the rows: at addresses that the user gives, or started here."""
