"""Studies of several methods over several seeds, and the methods and the report of the miniature town's study."""
