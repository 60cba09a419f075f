# FASTMINE_SANITIZE: instrument every target. Meant for the kernels and their C++ tests, without Python or torch.
# What a null pointer or the end of an object would tell is told by AddressSanitizer too. -O1 checks as much as -O3, and is
# compiled in half the time.

if(FASTMINE_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize=null,object-size -fno-sanitize-recover=all -fno-omit-frame-pointer
      -g1 -O1)
elseif(FASTMINE_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread -fno-omit-frame-pointer -g1 -O1)
elseif(FASTMINE_SANITIZE)
  message(FATAL_ERROR "FASTMINE_SANITIZE is address, thread or empty, not '${FASTMINE_SANITIZE}'.")
endif()
add_compile_options(${sanitize})
add_link_options(${sanitize})
