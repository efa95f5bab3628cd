"""The mini world: a drawn HOI4D, the embedded default data set of the project."""
