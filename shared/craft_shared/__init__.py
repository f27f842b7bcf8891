"""What the craftbox server and client must agree on, and nothing else.

Wire models (`craft_shared.wire`), the tensor codec (`craft_shared.codec`), problem types
(`craft_shared.problems`), counted units (`craft_shared.units`), heads as functions
(`craft_shared.head`), the adapter format (`craft_shared.adapter`) and files that are written whole
(`craft_shared.files`).
"""
