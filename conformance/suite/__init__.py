"""Tests of the suite itself: it must tell right from wrong before anyone believes it."""
