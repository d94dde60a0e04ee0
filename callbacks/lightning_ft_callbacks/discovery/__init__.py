"""How the blocks of a module are found."""
