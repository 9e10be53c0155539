"""One file per library of nets: what is supported there, and how each family is opened up."""
