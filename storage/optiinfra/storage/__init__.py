"""Where state lives: the only room that speaks to stores."""
