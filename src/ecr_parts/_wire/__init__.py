"""The calls for one repository."""
