# The instruction sets that a processor of this kind may have, and the kernels of one of them added to a target.
set(GSB_TRAIN_ISAS)
if(NOT MSVC AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(GSB_TRAIN_ISAS avx512 avx2)
elseif(NOT MSVC AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(GSB_TRAIN_ISAS neon)
endif()

function(add_train_kernels target isa)
  foreach(name attention attention_backward inputs linear tasks weights)
    target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/native/train/${name}.cpp)
  endforeach()
  string(TOUPPER ${isa} macro)
  target_compile_definitions(${target} PRIVATE GSB_TRAIN_${macro})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/native/src)
  target_link_libraries(${target} PRIVATE gsb_vit)
  # As in PyTorch every operation of the forward pass is rounded once.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=off -fno-math-errno)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 header starts from registers it leaves undefined on purpose, and warns of them; wide registers
    # are passed only between functions that are always inlined.
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized -Wno-ignored-attributes
      -Wno-psabi)
  endif()
endfunction()
