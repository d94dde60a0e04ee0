"""Phases: what a schedule is made of, and what a fit does by one."""
