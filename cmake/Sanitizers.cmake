# FASTMINE_SANITIZE: instrument every target. Meant for the kernels and their C++ tests, without Python or torch.

if(FASTMINE_SANITIZE STREQUAL "address")
  set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
elseif(FASTMINE_SANITIZE STREQUAL "thread")
  set(sanitize -fsanitize=thread -fno-omit-frame-pointer)
elseif(FASTMINE_SANITIZE)
  message(FATAL_ERROR "FASTMINE_SANITIZE is address, thread or empty, not '${FASTMINE_SANITIZE}'.")
endif()
add_compile_options(${sanitize})
add_link_options(${sanitize})
