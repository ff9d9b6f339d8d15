import os
import sys

print("hello", *sys.argv[1:], os.getcwd(), os.environ["PATH"].split(":")[0])
