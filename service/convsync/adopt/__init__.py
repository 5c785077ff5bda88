"""Moving the old system's database in: read it (`source`), judge it (`reading`), land it (`moving`)."""
