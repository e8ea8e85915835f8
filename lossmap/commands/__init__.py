"""The doors: what a person asked for, told as a story. A door never imports a door."""
