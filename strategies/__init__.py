"""How the server samples clients and weighs their students: one strategy, one file."""
