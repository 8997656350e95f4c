"""The services that compute the rows: addresses given by the caller, or processes started here."""
