"""The commands of `klppo`, one file each: they parse, delegate and print."""
