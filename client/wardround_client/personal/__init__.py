"""At home, where nothing leaves: adapt a model to one's own patients, judge it, predict."""
