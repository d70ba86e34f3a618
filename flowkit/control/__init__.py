"""Talking to a running project from outside: what is asked, and how it is answered."""
