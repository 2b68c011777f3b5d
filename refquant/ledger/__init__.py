"""Every operator, engine, instruction set and dtype, compared with live torch.

Needs torch; nothing else in refquant imports it.
"""
