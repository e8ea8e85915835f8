"""Many surveys as one: members that are known by their contents, one pool of ranks for all, one table at the end."""
