"""Files from elsewhere: told apart by content, checked before anything is made of them, loaded without running them.

And files for elsewhere: written so that they are there whole or not at all.
"""
