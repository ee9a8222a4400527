"""Simulated robots behind one interface, `World`; `tasks.make_world` opens one."""
