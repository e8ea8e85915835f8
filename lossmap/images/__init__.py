"""Corruptions of images and the operations that they are made of: arrays to arrays, without torch."""
