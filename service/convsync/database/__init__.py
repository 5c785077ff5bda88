"""Everything between the service and PostgreSQL: the pool, the installer, the embedded server."""
