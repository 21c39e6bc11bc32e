"""Running programs that nobody has read, on Linux: what the kernel confines, what is killed, what is compared where.

`launch` is the parent's side. The children import `program` or `tester` from this folder and the standard library
alone, under the name `sandbox`, so that a program starts in hundredths of a second and shares no process with torch.
"""
