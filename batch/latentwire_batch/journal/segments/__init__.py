"""Settled rows in an object store: whole files of records, each with an index at its end.

A log in a folder that all machines share grows by appending, which object stores cannot do. There,
rows are collected into segments: the bytes of such a log, put in one piece.
"""
