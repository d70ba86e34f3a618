"""Launchers start replicas somewhere and report their end; today: processes of this machine."""
