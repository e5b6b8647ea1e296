"""The commands of super_node.py: one module a command, and what they share.."""
