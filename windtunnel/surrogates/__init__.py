"""Small networks that imitate a defense, so that an attack has a gradient where the defense has none."""
