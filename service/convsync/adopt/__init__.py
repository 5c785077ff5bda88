"""Moving the old system's database in: read it (`source`), judge its rows (`reading`), land them (`moving`)."""
